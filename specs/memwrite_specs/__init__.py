"""The laws that a memwrite memory must keep: a conformance kit, still to come."""
