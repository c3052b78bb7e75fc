"""Rewards on a server: `ff-reward serve`. Importing this loads nothing."""
