//! [`Deadline`]: when a run has to be finished, as a job file says it. It refuses what has no one meaning; it looks at no
//! clock.

use chrono::{DateTime, Days, FixedOffset, NaiveTime, TimeZone};

use crate::spec::JobSpec;
use crate::{Error, Result};

/// When a run has to be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// The next time that clocks show this.
    Daily(NaiveTime),
    /// One moment.
    At(DateTime<FixedOffset>),
}

impl Deadline {
    /// Reads `06:00` or an RFC 3339 moment (`2026-11-21T06:00:00+01:00`).
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self> {
        if let Ok(time) = NaiveTime::parse_from_str(text, "%H:%M") {
            return Ok(Self::Daily(time));
        }
        DateTime::parse_from_rfc3339(text).map(Self::At).map_err(|_| {
            Error::invalid(format!("{text:?} is no deadline"))
                .hint("deadline = '06:00', the next one by the planner's clock, or '2026-11-21T06:00:00+01:00'")
        })
    }

    /// The moment that is meant at `now`, in milliseconds since 1970. A time of day that clocks skip when they are put forward
    /// is taken an hour later; one that comes twice, the first time.
    pub fn after<Zone: TimeZone>(self, now: &DateTime<Zone>) -> i64 {
        let time = match self {
            Self::At(moment) => return moment.timestamp_millis(),
            Self::Daily(time) => time,
        };
        let today = now.date_naive();
        let moments = (0..3).filter_map(|days| {
            let local = today.checked_add_days(Days::new(days))?.and_time(time);
            let zone = now.timezone();
            zone.from_local_datetime(&local)
                .earliest()
                .or_else(|| zone.from_local_datetime(&(local + chrono::TimeDelta::hours(1))).earliest())
        });
        let next = moments.map(|moment| moment.timestamp_millis()).find(|moment| *moment > now.timestamp_millis());
        // The calendar does not end within three days.
        next.unwrap_or_else(|| now.timestamp_millis())
    }
}

impl JobSpec {
    /// The moment of the job's deadline at `now`, in milliseconds since 1970, if it has one.
    ///
    /// # Errors
    /// As [`Deadline::parse`].
    pub fn deadline_ms<Zone: TimeZone>(&self, now: &DateTime<Zone>) -> Result<Option<i64>> {
        let deadline = self.deadline.as_deref().map(Deadline::parse).transpose()?;
        Ok(deadline.map(|deadline| deadline.after(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<FixedOffset> {
        DateTime::parse_from_rfc3339(text).unwrap()
    }

    #[test]
    fn a_time_of_day_is_the_next_one() {
        let six = Deadline::parse("06:00").unwrap();
        for (now, then) in [
            ("2026-11-20T22:15:00+01:00", "2026-11-21T06:00:00+01:00"),
            ("2026-11-21T05:59:59+01:00", "2026-11-21T06:00:00+01:00"),
            ("2026-11-21T06:00:00+01:00", "2026-11-22T06:00:00+01:00"),
            ("2026-12-31T23:00:00-05:00", "2027-01-01T06:00:00-05:00"),
        ] {
            assert_eq!(six.after(&at(now)), at(then).timestamp_millis(), "{now}");
        }
    }

    #[test]
    fn a_moment_is_itself() {
        let moment = Deadline::parse("2026-11-21T06:00:00+01:00").unwrap();
        assert_eq!(moment.after(&at("2030-01-01T00:00:00Z")), at("2026-11-21T05:00:00Z").timestamp_millis());
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "6", "25:00", "06:00 CET", "tomorrow", "2026-11-21T06:00:00"] {
            assert!(Deadline::parse(text).unwrap_err().to_string().contains("is no deadline"), "{text}");
        }
    }
}
