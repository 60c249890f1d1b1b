"""Which units carry the noise (`ranking`), which of them go (`selection`), and their removal
(`surgery`) or silencing (`masks`)."""
