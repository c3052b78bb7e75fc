"""`report.html`, the page of a run, made from the folder `report/`; and the pages of `ff-view`."""
