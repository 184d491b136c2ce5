"""Where a trace first goes wrong: steps, and the locators that vote on the first faulty one."""
