//! How talks about rows go: what is asked again, what is a row's error, what stops the lane, what it took.
