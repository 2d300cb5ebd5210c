"""my-writer and its reader keep every law that binds them."""

from memwrite_my_writer import READER, WRITER
from memwrite_specs import conformance


@conformance((WRITER, READER))
def test_my_writer(law):
    law()
