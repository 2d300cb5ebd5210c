"""Readers, baselines and tasks that come with memwrite, declared as any plugin declares its own."""
