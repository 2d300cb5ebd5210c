"""Every law that binds my-writer."""

from memwrite_my_writer import WRITER
from memwrite_specs import conformance


@conformance(WRITER, reader="prefix")
def test_my_writer(law):
    law()
