"""my-writer keeps every law that binds it."""

from memwrite_my_writer import WRITER
from memwrite_specs import conformance


@conformance(WRITER)
def test_my_writer(law):
    law()
