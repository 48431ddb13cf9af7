"""Charts, pictures and the page that reports, data cards and studies share."""
