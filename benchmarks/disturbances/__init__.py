"""What benchmarks/reliability.py does to searches, and what must hold afterwards."""
