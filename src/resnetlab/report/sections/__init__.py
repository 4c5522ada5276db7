"""The sections of the page, one module each; see `resnetlab.report.section`."""
