//! [`Lane`]: how a request is sent. The word is the vocabulary's; prices, permits and transports differ by it.

pub use rowmill_jobs::lane::Lane;
