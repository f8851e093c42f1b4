"""Where steps run: `inline` (this process) and `processes` (local workers). All have the interface of `base.Engine`."""
