//! What a device is told of a step, as plain numbers, and what of a model it can carry: a packed batch as flat tables and tiles of
//! work, copies of pages in an order that is safe, token masks, which steps are recorded, which host buffer a copy goes through, which
//! matrices stay as they are stored,
//! and how many pages fit. Pure: it knows no device, touches no memory of one, and is tested on machines without any.

pub(crate) mod carried;
pub(crate) mod copies;
pub(crate) mod eights;
pub(crate) mod masks;
pub(crate) mod memory;
pub(crate) mod recordings;
pub(crate) mod shelf;
pub(crate) mod step;
pub(crate) mod stored;
