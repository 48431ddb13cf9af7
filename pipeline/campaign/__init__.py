"""What comes of a search: the report of the campaign."""
