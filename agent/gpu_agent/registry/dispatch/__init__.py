"""Why a node cannot take a job, which of the eligible nodes is best, and which job holds which claim."""
