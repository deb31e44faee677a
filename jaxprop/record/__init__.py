"""What a pass records: statistics, their batching, and the tape."""
