"""A run as a page: `report.html`, from what is kept in the run's folder `report/`; and the pages of `ff-view`."""
