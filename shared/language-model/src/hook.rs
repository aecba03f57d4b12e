//! Where in a model activations are taken.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A place inside a transformer block, with TransformerLens' names and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The residual stream as it enters the block.
    ResidPre,
    /// What the attention layer adds to the residual stream, output bias included.
    AttnOut,
    /// The residual stream between attention and MLP.
    ResidMid,
    /// What the MLP adds to the residual stream, output bias included.
    MlpOut,
    /// The residual stream as it leaves the block.
    ResidPost,
}

impl Site {
    /// Every site, in the order in which a block computes them.
    pub const ALL: [Site; 5] = [Site::ResidPre, Site::AttnOut, Site::ResidMid, Site::MlpOut, Site::ResidPost];

    /// The site's TransformerLens name, without the `hook_` in front of it.
    pub fn name(self) -> &'static str {
        match self {
            Site::ResidPre => "resid_pre",
            Site::AttnOut => "attn_out",
            Site::ResidMid => "resid_mid",
            Site::MlpOut => "mlp_out",
            Site::ResidPost => "resid_post",
        }
    }
}

/// A site of one block: `blocks.1.hook_resid_pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    /// The block, counted from 0.
    pub layer: usize,
    /// The place inside the block.
    pub site: Site,
}

impl HookPoint {
    /// The residual stream as it enters block `layer`.
    pub fn resid_pre(layer: usize) -> HookPoint {
        HookPoint { layer, site: Site::ResidPre }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.hook_{}", self.layer, self.site.name())
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<HookPoint, Error> {
        let parse = || {
            let (layer, site) = text.strip_prefix("blocks.")?.split_once(".hook_")?;
            // `usize::from_str` would also take a sign and leading zeros, which are not names.
            let layer = layer.parse().ok().filter(|l: &usize| l.to_string() == layer)?;
            let site = Site::ALL.into_iter().find(|s| s.name() == site)?;
            Some(HookPoint { layer, site })
        };
        parse().ok_or_else(|| Error::UnknownHook { name: text.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_point_prints_as_the_name_it_is_read_from() {
        for site in Site::ALL {
            let hook = HookPoint { layer: 11, site };
            assert_eq!(hook.to_string().parse::<HookPoint>().unwrap(), hook);
        }
        assert_eq!(HookPoint::resid_pre(1).to_string(), "blocks.1.hook_resid_pre");
    }

    #[test]
    fn an_unknown_hook_is_refused_with_the_names_that_exist() {
        for name in [
            "",
            "blocks.1",
            "blocks.1.hook_resid",
            "blocks.+1.hook_resid_pre",
            "blocks.01.hook_mlp_out",
            "blocks.-1.hook_mlp_out",
        ] {
            let message = name.parse::<HookPoint>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{name}`")), "{message}");
            assert!(message.contains("resid_mid"), "{message}");
        }
    }
}
