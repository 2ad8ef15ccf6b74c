"""The lab: suites run in a virtual machine on a chosen kernel, so that anyone can repeat them."""
