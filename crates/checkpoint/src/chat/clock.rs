//! `strftime_now` for a given moment, in UTC.

use minijinja::{Error, ErrorKind};

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
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A moment on the proleptic Gregorian calendar.
struct Moment {
    year: i64,
    month: u32,
    day: u32,
    day_of_year: u32,
    /// 0 is Monday.
    weekday: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

/// Formats `unix_s`, seconds since 1970 in UTC, by the directives of C's `strftime` in the C locale.
pub(super) fn strftime(unix_s: i64, format: &str) -> Result<String, Error> {
    let moment = Moment::at(unix_s);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next().unwrap_or('%');
        let (directive, pad) =
            if directive == '-' { (chars.next().unwrap_or('-'), false) } else { (directive, true) };
        out.push_str(&moment.field(directive, pad)?);
    }
    Ok(out)
}

impl Moment {
    fn at(unix_s: i64) -> Self {
        let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400) as u32);
        let (year, month, day) = civil(days);
        Self {
            year,
            month,
            day,
            day_of_year: (days - days_before(year)) as u32 + 1,
            weekday: (days + 3).rem_euclid(7) as u32,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    fn field(&self, directive: char, pad: bool) -> Result<String, Error> {
        let number = |n: u32, width: usize| if pad { format!("{n:0width$}") } else { n.to_string() };
        let month = MONTHS[self.month as usize - 1];
        let weekday = DAYS[self.weekday as usize];
        Ok(match directive {
            'Y' => self.year.to_string(),
            'y' => number(self.year.rem_euclid(100) as u32, 2),
            'm' => number(self.month, 2),
            'd' => number(self.day, 2),
            'e' => format!("{:2}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => number(self.day_of_year, 3),
            'H' => number(self.hour, 2),
            'I' => number((self.hour + 11) % 12 + 1, 2),
            'M' => number(self.minute, 2),
            'S' => number(self.second, 2),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => {
                let problem =
                    format!("strftime_now does not know %{directive}; it knows YymdeBbhAajHIMSpFTZz");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        })
    }
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: i64) -> i64 {
    let y = year - 1;
    365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) - 719_162
}

fn civil(days: i64) -> (i64, u32, u32) {
    let mut year = 1970 + days.div_euclid(366);
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut day = (days - days_before(year)) as u32;
    let leap = days_before(year + 1) - days_before(year) == 366;
    for month in 1.. {
        let length = match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    unreachable!("the days of a year are in its months")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        // date -u -d @N +'%F %T %A %j %I%p'
        let cases = [
            (0, "1970-01-01 00:00:00 Thursday 001 12AM"),
            (951_782_399, "2000-02-28 23:59:59 Monday 059 11PM"),
            (951_825_600, "2000-02-29 12:00:00 Tuesday 060 12PM"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday 366 11PM"),
            (-1, "1969-12-31 23:59:59 Wednesday 365 11PM"),
        ];
        for (unix_s, expected) in cases {
            assert_eq!(strftime(unix_s, "%F %T %A %j %I%p").unwrap(), expected);
        }
        assert_eq!(strftime(0, "%d %b %Y, %-d%%").unwrap(), "01 Jan 1970, 1%");
        assert!(strftime(0, "%Q").unwrap_err().to_string().contains("%Q"));
    }
}
