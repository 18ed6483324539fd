"""What is wrong with a set-up, and how to cure it: checks that change nothing and take all they can look at."""
