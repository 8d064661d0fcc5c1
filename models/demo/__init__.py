"""The demo pair: a small assistant (target) and its on-device drafter, with the recipe that trained them."""
