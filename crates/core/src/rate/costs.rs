//! What a request costs, in as many windows as there are.

/// What a request costs in each window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Costs {
    /// In the only window.
    One(u64),
    Many(Box<[u64]>),
}

impl Costs {
    pub fn as_slice(&self) -> &[u64] {
        match self {
            Self::One(cost) => std::slice::from_ref(cost),
            Self::Many(costs) => costs,
        }
    }
}

impl FromIterator<u64> for Costs {
    fn from_iter<I: IntoIterator<Item = u64>>(costs: I) -> Self {
        let costs: Box<[u64]> = costs.into_iter().collect();
        match *costs {
            [cost] => Self::One(cost),
            _ => Self::Many(costs),
        }
    }
}
