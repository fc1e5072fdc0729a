"""The ledger: which samples each completed step used, written as the run goes."""
