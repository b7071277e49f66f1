"""What comes from outside: samples that somebody else paid for, human targets, verdicts and divergence cases."""
