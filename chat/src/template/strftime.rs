//! `strftime_now`: dates as C and Python print them in the C locale.

/// Says what time it is, in seconds since 1970-01-01 00:00:00 UTC.
pub type Clock = fn() -> i64;

const SECONDS_PER_DAY: i64 = 86_400;
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `format` with its `%` directives replaced by the UTC date and time at `unix_seconds`.
///
/// # Errors
/// With the first directive that is not supported.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> Result<String, String> {
    let moment = Moment::at(unix_seconds);
    let mut text = String::with_capacity(format.len() + 16);
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        text.push_str(&rest[..percent]);
        let mut directive = rest[percent + 1..].chars();
        let unpadded = directive.as_str().starts_with('-');
        if unpadded {
            directive.next();
        }
        let name = directive.next();
        let written = name.and_then(|name| moment.directive(name));
        let written = written.ok_or_else(|| {
            format!("strftime_now does not know the directive %{}", name.unwrap_or(' '))
        })?;
        // `%-d` drops the padding of `%d`; one digit always stays.
        let trimmed = written.trim_start_matches('0');
        text.push_str(match (unpadded, trimmed.is_empty()) {
            (true, true) => "0",
            (true, false) => trimmed,
            (false, _) => &written,
        });
        rest = directive.as_str();
    }
    Ok(text + rest)
}

/// A point in time as a calendar and a clock show it.
struct Moment {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
    /// 1 to 366.
    day_of_year: i64,
    /// 0 is Sunday.
    weekday: i64,
    /// Seconds since midnight.
    second: i64,
}

impl Moment {
    /// The proleptic Gregorian calendar, counted in eras of 400 years that begin on March 1st, so
    /// that the leap day is the last of a year.
    fn at(unix_seconds: i64) -> Self {
        let days = unix_seconds.div_euclid(SECONDS_PER_DAY);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let january_first =
            if month <= 2 { from_march - 306 } else { from_march + 59 + i64::from(leap) };
        Self {
            year,
            month,
            day: from_march - (153 * month_from_march + 2) / 5 + 1,
            day_of_year: january_first + 1,
            weekday: (days + 4).rem_euclid(7),
            second: unix_seconds.rem_euclid(SECONDS_PER_DAY),
        }
    }

    fn directive(&self, name: char) -> Option<String> {
        let (hour, minute) = (self.second / 3_600, self.second / 60 % 60);
        let month_name = *name_at(&MONTHS, self.month - 1)?;
        let weekday_name = *name_at(&WEEKDAYS, self.weekday)?;
        Some(match name {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => weekday_name.to_owned(),
            'a' => weekday_name[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{:02}", self.second % 60),
            'f' => "000000".to_owned(),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{:02}", self.second % 60),
            'z' => String::new(),
            'Z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

fn name_at<'a>(names: &'a [&'static str], index: i64) -> Option<&'a &'static str> {
    names.get(usize::try_from(index).ok()?)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// The right-hand sides are what Python's `datetime.fromtimestamp(t, UTC)` prints.
    #[test]
    fn prints_what_python_prints() {
        let format = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %I %p %w %-d %-m %%";
        let expected = [
            (0, "1970-01-01 00:00:00 Thursday Thu January Jan 001 70 12 AM 4 1 1 %"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday Tue February Feb 060 00 12 AM 2 29 2 %"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday Tue December Dec 366 24 11 PM 2 31 12 %"),
            (-1, "1969-12-31 23:59:59 Wednesday Wed December Dec 365 69 11 PM 3 31 12 %"),
            (4_107_542_400, "2100-03-01 00:00:00 Monday Mon March Mar 060 00 12 AM 1 1 3 %"),
        ];
        for (time, text) in expected {
            assert_eq!(strftime(format, time).unwrap(), text);
        }
    }

    #[test]
    fn an_unknown_directive_is_named() {
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("5 %", 0).is_err());
    }
}
