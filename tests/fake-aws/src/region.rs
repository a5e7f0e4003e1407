//! Names and addresses that follow from the region: zones, their ids, subnets, ARNs, private names.

use std::net::Ipv4Addr;

pub(crate) const ACCOUNT: &str = "123456789012";
/// Each has one subnet, 10.0.0.0/20, 10.0.16.0/20 and so on.
const LETTERS: [char; 6] = ['a', 'b', 'c', 'd', 'e', 'f'];
/// What a subnet id is but for the zone's letter, which is a hexadecimal digit itself.
const SUBNET: &str = "subnet-0fa4e00000000000";
/// Addresses of a /20, and how many of its first ones AWS keeps.
const SUBNET_SIZE: u32 = 1 << 12;
const KEPT: u32 = 4;

#[derive(Clone, Debug)]
pub(crate) struct Region(String);

impl Region {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn has_zone(&self, zone: &str) -> bool {
        self.letter(zone).is_some()
    }

    /// `us-west-2b` is `usw2-az2`, here. In AWS, which letter is which id differs between accounts.
    pub(crate) fn zone_id(&self, zone: &str) -> String {
        let mut words = self.0.split('-');
        let (area, direction, number) = (words.next(), words.next().unwrap_or_default(), words.next());
        let direction = match direction {
            "northeast" => "ne",
            "northwest" => "nw",
            "southeast" => "se",
            "southwest" => "sw",
            other => other.get(..1).unwrap_or_default(),
        };
        let index = self.letter(zone).map_or(0, |index| index + 1);
        format!("{}{direction}{}-az{index}", area.unwrap_or_default(), number.unwrap_or_default())
    }

    pub(crate) fn subnet(&self, zone: &str) -> String {
        format!("{SUBNET}{}", self.letter(zone).map_or('0', |index| LETTERS[index]))
    }

    pub(crate) fn zone_of_subnet(&self, subnet: &str) -> Option<String> {
        let letter = subnet.strip_prefix(SUBNET)?;
        let zone = format!("{}{letter}", self.0);
        self.has_zone(&zone).then_some(zone)
    }

    /// The `number`th address of the zone's subnet; `None` past its end.
    pub(crate) fn address(&self, zone: &str, number: u32) -> Option<Ipv4Addr> {
        let index = u32::try_from(self.letter(zone)?).ok()?;
        // The last one is the broadcast address.
        (number < SUBNET_SIZE - KEPT - 1)
            .then(|| Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + index * SUBNET_SIZE + KEPT + number))
    }

    /// The name that EC2 gives, and the kubelet takes. us-east-1 has a form of its own.
    pub(crate) fn private_name(&self, address: Ipv4Addr) -> String {
        let domain =
            if self.0 == "us-east-1" { "ec2.internal".to_owned() } else { format!("{}.compute.internal", self.0) };
        format!("ip-{}.{domain}", address.to_string().replace('.', "-"))
    }

    pub(crate) fn group_arn(&self, uuid: &str, name: &str) -> String {
        format!("arn:aws:autoscaling:{}:{ACCOUNT}:autoScalingGroup:{uuid}:autoScalingGroupName/{name}", self.0)
    }

    fn letter(&self, zone: &str) -> Option<usize> {
        let letter = zone.strip_prefix(&self.0)?;
        LETTERS.iter().position(|known| letter.len() == 1 && letter.starts_with(*known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_ids_subnets_and_addresses() {
        let region = Region::new("us-west-2");
        assert!(region.has_zone("us-west-2f") && !region.has_zone("us-west-2g") && !region.has_zone("eu-west-2a"));
        assert_eq!(region.zone_id("us-west-2b"), "usw2-az2");
        assert_eq!(Region::new("ap-southeast-1").zone_id("ap-southeast-1a"), "apse1-az1");
        assert_eq!(region.zone_of_subnet(&region.subnet("us-west-2c")).as_deref(), Some("us-west-2c"));
        assert_eq!(region.zone_of_subnet("subnet-1"), None);
        assert_eq!(region.address("us-west-2a", 0), Some(Ipv4Addr::new(10, 0, 0, 4)));
        assert_eq!(region.address("us-west-2b", 1), Some(Ipv4Addr::new(10, 0, 16, 5)));
        assert_eq!(region.address("us-west-2a", 4091), None);
        assert_eq!(region.private_name(Ipv4Addr::new(10, 0, 16, 5)), "ip-10-0-16-5.us-west-2.compute.internal");
    }
}
