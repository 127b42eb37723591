//! Times as they are in paths and lines: UTC.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{Month, OffsetDateTime};

use crate::settings::Rolling;

/// A moment of UTC, by the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Date {
    pub(crate) year: u64,
    pub(crate) month: u64,
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) minute: u64,
    second: u64,
    micros: u64,
}

const DAY: u64 = 86_400;
/// The last moment of the year 9999: what has four digits of a year.
const LAST: u64 = 253_402_300_799_999_999;

/// Microseconds since 1970; 0 before it, and the end of 9999 after that.
pub(crate) fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(LAST).min(LAST)
}

/// The number of a day since 1970 of a date that there is, from 1970 on.
pub(crate) fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = time::Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day).ok()?);
    u64::try_from(date.ok()?.midnight().assume_utc().unix_timestamp()).ok().map(|seconds| seconds / DAY)
}

/// Where in the calendar moments are that come after each other: most are in the second of the one before.
#[derive(Debug, Default)]
pub(crate) struct Calendar(Option<(u64, Rolling, At)>);

/// Where a second is.
#[derive(Clone, Copy, Debug)]
struct At {
    date: Date,
    bucket: u64,
    until: u64,
}

impl Calendar {
    /// The date of so many microseconds since 1970, which folder it is in, and when that ends.
    pub(crate) fn at(&mut self, micros: u64, rolling: Rolling) -> (Date, u64, u64) {
        let second = micros / 1_000_000;
        let at = match self.0 {
            Some((known, of, at)) if known == second && of == rolling => at,
            _ => {
                let date = Date::of(micros);
                let (bucket, until) = date.bucket(rolling);
                At { date, bucket, until }
            }
        };
        self.0 = Some((second, rolling, at));
        (Date { micros: micros % 1_000_000, ..at.date }, at.bucket, at.until)
    }
}

impl Date {
    /// Of microseconds since 1970.
    pub(crate) fn of(micros: u64) -> Self {
        let micros = micros.min(LAST);
        let seconds = i64::try_from(micros / 1_000_000).unwrap_or_default();
        // Each second up to the end of 9999 is one of the calendar.
        let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self {
            year: time.year().unsigned_abs().into(),
            month: u8::from(time.month()).into(),
            day: time.day().into(),
            hour: time.hour().into(),
            minute: time.minute().into(),
            second: time.second().into(),
            micros: micros % 1_000_000,
        }
    }

    /// The folder: `2026/11/30/08`.
    pub(crate) fn write_folder(&self, rolling: Rolling, to: &mut String) {
        let Self { year, month, day, hour, minute, .. } = self;
        let _ = match rolling {
            Rolling::Year => write!(to, "{year:04}"),
            Rolling::Month => write!(to, "{year:04}/{month:02}"),
            Rolling::Day => write!(to, "{year:04}/{month:02}/{day:02}"),
            Rolling::Hour => write!(to, "{year:04}/{month:02}/{day:02}/{hour:02}"),
            Rolling::Minute => write!(to, "{year:04}/{month:02}/{day:02}/{hour:02}/{minute:02}"),
        };
    }

    /// Which folder, as a number; and when another one begins, microseconds since 1970.
    pub(crate) fn bucket(&self, rolling: Rolling) -> (u64, u64) {
        let Self { year, month, day, hour, minute, .. } = *self;
        // The first of a month that there is, is there; the year 10000 is beyond what any moment here is in.
        let days = |year, month, day| days(year, month, day).unwrap_or(LAST / 1_000_000 / DAY + 1);
        let next = match rolling {
            Rolling::Year => days(year + 1, 1, 1) * DAY,
            Rolling::Month if month == 12 => days(year + 1, 1, 1) * DAY,
            Rolling::Month => days(year, month + 1, 1) * DAY,
            Rolling::Day => (days(year, month, day) + 1) * DAY,
            Rolling::Hour => days(year, month, day) * DAY + (hour + 1) * 3600,
            Rolling::Minute => days(year, month, day) * DAY + hour * 3600 + (minute + 1) * 60,
        };
        // No two folders of one rolling rate end at the same time.
        (next, next * 1_000_000)
    }

    /// `2026-11-30T08:01:02.345678`, as Python's `isoformat()` without a zone: no fraction where it is zero.
    pub(crate) fn write_iso(&self, to: &mut Vec<u8>) {
        let Self { year, month, day, hour, minute, second, micros } = *self;
        let mut digits = |number: u64, count: u32| {
            for place in (0..count).rev() {
                to.push(b'0' + (number / 10_u64.pow(place) % 10) as u8);
            }
        };
        digits(year, 4);
        let parts = [(b'-', month), (b'-', day), (b'T', hour), (b':', minute), (b':', second)];
        for (before, number) in parts {
            to.push(before);
            to.push(b'0' + (number / 10 % 10) as u8);
            to.push(b'0' + (number % 10) as u8);
        }
        if micros > 0 {
            to.push(b'.');
            for place in (0..6).rev() {
                to.push(b'0' + (micros / 10_u64.pow(place) % 10) as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso(micros: u64) -> String {
        let mut text = Vec::new();
        Date::of(micros).write_iso(&mut text);
        String::from_utf8(text).expect("digits")
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // `datetime.fromtimestamp(n, timezone.utc).replace(tzinfo=None).isoformat()`
        assert_eq!(iso(0), "1970-01-01T00:00:00");
        assert_eq!(iso(951_782_400_000_000), "2000-02-29T00:00:00");
        assert_eq!(iso(1_709_164_799_000_001), "2024-02-28T23:59:59.000001");
        assert_eq!(iso(1_709_164_800_500_000), "2024-02-29T00:00:00.500000");
        assert_eq!(iso(4_107_542_399_000_000), "2100-02-28T23:59:59");
        assert_eq!(iso(4_107_542_400_000_000), "2100-03-01T00:00:00");
        assert_eq!(iso(u64::MAX), "9999-12-31T23:59:59.999999");
    }

    #[test]
    fn a_calendar_is_right_whatever_was_asked_before() {
        let mut calendar = Calendar::default();
        for micros in [0, 1, 999_999, 1_000_000, 1_000_001, 3_600_000_000, 0, LAST, LAST - 1] {
            for rolling in [Rolling::Hour, Rolling::Minute, Rolling::Minute] {
                let date = Date::of(micros);
                let (bucket, until) = date.bucket(rolling);
                assert_eq!(calendar.at(micros, rolling), (date, bucket, until), "{micros}");
            }
        }
    }

    #[test]
    fn each_day_is_the_one_that_it_came_from() {
        for day in (0..2_932_896).step_by(7) {
            let date = Date::of(day * DAY * 1_000_000);
            assert_eq!(days(date.year, date.month, date.day), Some(day));
        }
    }

    #[test]
    fn a_day_that_is_none_has_no_number() {
        for (year, month, day) in
            [(2025, 2, 29), (2026, 13, 1), (2026, 0, 1), (2026, 4, 31), (1969, 12, 31), (u64::MAX, 1, 1)]
        {
            assert_eq!(days(year, month, day), None, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn folders_are_as_wide_as_they_are_called() {
        let date = Date::of(1_767_225_599_000_000); // 2025-12-31T23:59:59
        let folder = |rolling| {
            let mut text = String::new();
            date.write_folder(rolling, &mut text);
            (text, iso(date.bucket(rolling).1))
        };
        assert_eq!(folder(Rolling::Minute), ("2025/12/31/23/59".into(), "2026-01-01T00:00:00".into()));
        assert_eq!(folder(Rolling::Hour).0, "2025/12/31/23");
        assert_eq!(folder(Rolling::Day).0, "2025/12/31");
        assert_eq!(folder(Rolling::Month), ("2025/12".into(), "2026-01-01T00:00:00".into()));
        assert_eq!(folder(Rolling::Year), ("2025".into(), "2026-01-01T00:00:00".into()));
        let date = Date::of(1_738_416_000_000_000); // 2025-02-01T13:20:00
        assert_eq!(iso(date.bucket(Rolling::Month).1), "2025-03-01T00:00:00");
        assert_eq!(iso(date.bucket(Rolling::Hour).1), "2025-02-01T14:00:00");
        assert_eq!(iso(date.bucket(Rolling::Minute).1), "2025-02-01T13:21:00");
    }
}
