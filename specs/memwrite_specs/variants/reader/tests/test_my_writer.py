"""my-writer keeps every law that binds it, beside the kit's own writer of prefixes."""

from memwrite_my_writer import READER
from memwrite_specs import conformance


@conformance(READER)
def test_my_writer(law):
    law()
