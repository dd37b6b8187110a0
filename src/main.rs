//! rowmill: placeholder.
fn main() {}
