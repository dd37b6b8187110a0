//! Devices that failed. What a device's driver or library says is marked as that device's ([`device_error`]); a device that
//! fails for good is lost to this process: after an illegal access or a fault of its memory, CUDA computes nothing more there
//! until the process is another one. Here it is remembered; ending the process is for whoever runs it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rowmill_jobs::Error;

use crate::drive::is_out_of_memory;

/// Why devices are lost to this process, by number.
static LOST: Mutex<BTreeMap<usize, String>> = Mutex::new(BTreeMap::new());

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Among an error's causes it says that a device's driver or library refused something. It reads as what they said.
#[derive(Debug)]
struct DeviceError(Cause);

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// An error of a device's, with what its driver or library said.
#[cfg(any(test, feature = "cuda"))]
pub(crate) fn device_error(message: &str, said: impl Into<Cause>) -> Error {
    Error::internal(message).caused_by(DeviceError(said.into()))
}

/// Whether a device is at fault, and no model, no task and no row.
pub(crate) fn is_of_device(error: &Error) -> bool {
    chain(error).any(<dyn std::error::Error>::is::<DeviceError>)
}

/// Whether a device that said so fails from now on. Memory that one step lacks another may have.
pub(crate) fn is_lasting(error: &Error) -> bool {
    is_of_device(error) && !is_out_of_memory(error)
}

/// What happened, with its causes, and what can be done about it.
pub(crate) fn in_words(error: &Error) -> String {
    let causes = chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
    error.hint_text().map_or_else(|| causes.clone(), |hint| format!("{causes} ({hint})"))
}

fn chain(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

/// Remembers that a device computes nothing more in this process.
pub(crate) fn lose(device: usize, why: &Error) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.entry(device).or_insert_with(|| {
        let why = in_words(why);
        tracing::error!(device, why, "a device failed; this process computes nothing more on it");
        why
    });
}

/// Why a device computes nothing more in this process, if it does not.
pub(crate) fn lost_because(device: usize) -> Option<String> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).get(&device).cloned()
}

/// Whether a device computes nothing more in this process.
pub(crate) fn is_lost(device: usize) -> bool {
    lost_because(device).is_some()
}

/// Which device of this process failed for good, and why, if one did: only another process computes on it again.
pub fn lost_device() -> Option<String> {
    let lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.first_key_value().map(|(device, why)| format!("device {device}: {why}"))
}
