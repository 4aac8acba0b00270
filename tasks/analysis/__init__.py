"""What models cost, and how runs compare."""
