//! Which of two calls goes first.

/// How urgent a call is. The order is that of the turns: what is more urgent is less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before the others.
    High,
    /// As most calls.
    #[default]
    Normal,
    /// After the others.
    Low,
}

impl Priority {
    /// Every priority, the most urgent first.
    pub const ALL: &'static [Self] = &[Self::High, Self::Normal, Self::Low];

    /// The name, as in configuration and headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The priority of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|priority| priority.as_str() == name)
    }
}

impl std::fmt::Display for Priority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_comes_first() {
        assert!(Priority::High < Priority::Normal && Priority::Normal < Priority::Low);
        assert!(Priority::ALL.is_sorted());
        assert_eq!(Priority::default(), Priority::Normal);
        for priority in Priority::ALL {
            assert_eq!(Priority::from_name(priority.as_str()), Some(*priority));
        }
        assert_eq!(Priority::from_name("urgent"), None);
    }
}
