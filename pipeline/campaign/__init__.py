"""A search and what becomes of its best settings: trained anew with several seeds, tested on a split of its own, registered; its report."""
