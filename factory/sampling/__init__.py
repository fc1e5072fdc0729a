"""The plan: which samples make up any step of any epoch, as a pure function."""
