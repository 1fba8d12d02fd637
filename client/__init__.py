"""What other services copy: `billing_client.py`, one file that needs nothing of this repository."""
