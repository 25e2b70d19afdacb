//! Loss parts over flat token streams `[N]`: one entry per token that carries loss.

mod cross_entropy;
mod policy_gradient;

pub use cross_entropy::cross_entropy;
pub use policy_gradient::{Clip, PolicyGradient, policy_gradient};
