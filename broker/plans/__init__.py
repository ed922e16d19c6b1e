"""What is sent later, in parts, or again: schedules, rollouts, reruns."""
