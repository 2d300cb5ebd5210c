"""my-writer keeps every law that binds it."""

from memwrite_my_writer import WRITER
from memwrite_specs import conformance


@conformance(WRITER, reader="prefix")
def test_my_writer(law):
    law()
