"""What the learned masks share: policy, objectives, credit, optimisation and its guard."""
