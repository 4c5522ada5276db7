"""The sections of the report, one module each; see `resnetlab.report.section`."""
