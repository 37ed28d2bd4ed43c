"""Why a node cannot take a job, which of the able is best, who holds which place."""
