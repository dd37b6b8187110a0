//! What a device is told of a step, as plain numbers, and what of a model it can carry: a packed batch as flat tables and tiles
//! of work, copies of pages in an order that is safe, token masks, and how many pages fit. Pure: it knows no device, touches no
//! memory of one, and is tested on machines without any.

mod carried;
mod copies;
mod masks;
mod memory;
mod step;

pub(crate) use self::carried::{check_decoder, check_encoder, refused};
pub(crate) use self::copies::waves;
pub(crate) use self::masks::Masks;
pub(crate) use self::memory::pages_that_fit;
pub(crate) use self::step::{Section, Step, texts};
