"""One script per question; what they measured is in results/*.json, and the documentation's tables are made of that."""
