"""How administrators' jobs, cancellations and orders go out, and how they are followed."""
