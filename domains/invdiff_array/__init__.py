"""Any array under any registered operator: the domain for a forward model of your own."""
