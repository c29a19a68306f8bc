//! The metrics that a sensor can measure, with their units.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $name:literal [$($unit:literal $deadband:literal ($low:literal, $high:literal)),+];)*) => {
        /// The observed property that a sensor measures. The names are CF standard names, if the CF table has one.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            JsonSchema,
        )]
        pub enum Metric {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Metric {
            /// All metrics.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name in JSON.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns the UCUM units that a sensor of this metric may report in. The first is the usual one.
            #[must_use]
            pub fn units(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($unit),+],)* }
            }

            /// Returns the deadband in `unit`: how far inside its limit a reading must be to count as normal again.
            ///
            /// It is approximately the measurement noise of a good instrument. Returns `None` if the metric does not
            /// have this unit.
            #[must_use]
            pub fn deadband(self, unit: &str) -> Option<f64> {
                match self {
                    $(Self::$variant => match unit {
                        $($unit => Some($deadband),)+
                        _ => None,
                    },)*
                }
            }

            /// Returns the plausible range in `unit`: the least and the greatest value that a working instrument shows.
            ///
            /// The limits are generous. They are beyond all records, and include the noise and the offset of instruments
            /// around zero. Returns `None` if the metric does not have this unit.
            #[must_use]
            pub fn plausible(self, unit: &str) -> Option<(f64, f64)> {
                match self {
                    $(Self::$variant => match unit {
                        $($unit => Some(($low, $high)),)+
                        _ => None,
                    },)*
                }
            }
        }
    };
}

metrics! {
    /// Weather: air temperature.
    AirTemperature = "air_temperature" ["Cel" 0.5 (-100.0, 100.0), "K" 0.5 (173.15, 373.15)];
    /// Weather: relative humidity.
    RelativeHumidity = "relative_humidity" ["%" 2.0 (-5.0, 120.0)];
    /// Weather: air pressure at the station.
    AirPressure = "air_pressure" ["hPa" 0.5 (300.0, 1_150.0), "Pa" 50.0 (30_000.0, 115_000.0)];
    /// Weather: wind speed.
    WindSpeed = "wind_speed" ["m/s" 0.5 (0.0, 150.0)];
    /// Weather: the direction that the wind comes from, clockwise from north.
    WindFromDirection = "wind_from_direction" ["deg" 5.0 (0.0, 360.0)];
    /// Weather: precipitation.
    PrecipitationAmount = "precipitation_amount" ["mm" 0.2 (0.0, 30_000.0), "kg/m2" 0.2 (0.0, 30_000.0)];
    /// Radiation: downwelling global solar.
    DownwellingShortwave = "surface_downwelling_shortwave_flux_in_air" ["W/m2" 5.0 (-50.0, 2_000.0)];
    /// Radiation: upwelling (reflected) solar.
    UpwellingShortwave = "surface_upwelling_shortwave_flux_in_air" ["W/m2" 5.0 (-50.0, 2_000.0)];
    /// Radiation: direct normal solar.
    DirectShortwave = "surface_direct_along_beam_shortwave_flux_in_air" ["W/m2" 5.0 (-50.0, 2_000.0)];
    /// Radiation: diffuse solar.
    DiffuseShortwave = "surface_diffuse_downwelling_shortwave_flux_in_air" ["W/m2" 5.0 (-50.0, 2_000.0)];
    /// Radiation: downwelling thermal infrared.
    DownwellingLongwave = "surface_downwelling_longwave_flux_in_air" ["W/m2" 5.0 (0.0, 1_200.0)];
    /// Radiation: upwelling thermal infrared.
    UpwellingLongwave = "surface_upwelling_longwave_flux_in_air" ["W/m2" 5.0 (0.0, 1_200.0)];
    /// Radiation: global UVB, erythemally weighted.
    UvbFlux = "surface_downwelling_uvb_flux_in_air" ["mW/m2" 5.0 (-50.0, 2_000.0)];
    /// Radiation: photosynthetically active.
    PhotosyntheticFlux = "surface_downwelling_photosynthetic_radiative_flux_in_air" ["W/m2" 5.0 (-50.0, 1_000.0)];
    /// Radiation: ambient gamma dose equivalent rate.
    GammaDoseRate = "ambient_gamma_dose_equivalent_rate" ["uSv/h" 0.01 (0.0, 1e7), "nSv/h" 10.0 (0.0, 1e10)];
    /// Air: fine particles.
    Pm2p5 = "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air" ["ug/m3" 2.0 (-50.0, 100_000.0)];
    /// Air: coarse particles.
    Pm10 = "mass_concentration_of_pm10_ambient_aerosol_particles_in_air" ["ug/m3" 2.0 (-50.0, 100_000.0)];
    /// Air: ozone.
    Ozone = "mass_concentration_of_ozone_in_air" ["ug/m3" 2.0 (-50.0, 5_000.0)];
    /// Air: nitrogen dioxide.
    NitrogenDioxide = "mass_concentration_of_nitrogen_dioxide_in_air" ["ug/m3" 2.0 (-50.0, 10_000.0)];
    /// Air: carbon dioxide.
    CarbonDioxide = "mole_fraction_of_carbon_dioxide_in_air" ["[ppm]" 5.0 (0.0, 1e6)];
    /// Water: level above the gauge's datum.
    WaterLevel = "water_surface_height_above_reference_datum" ["m" 0.02 (-500.0, 9_000.0)];
    /// Water: temperature.
    WaterTemperature = "water_temperature" ["Cel" 0.5 (-10.0, 110.0), "K" 0.5 (263.15, 383.15)];
    /// Water: discharge of a river.
    WaterDischarge = "water_volume_transport_in_river_channel" ["m3/s" 0.1 (-500_000.0, 500_000.0)];
    /// Water: acidity.
    WaterPh = "water_ph" ["[pH]" 0.1 (-2.0, 16.0)];
    /// Water: electrical conductivity.
    WaterConductivity = "water_electrical_conductivity" ["uS/cm" 5.0 (0.0, 1e6), "S/m" 0.0005 (0.0, 100.0)];
    /// Water: dissolved oxygen.
    DissolvedOxygen = "mass_concentration_of_oxygen_in_water" ["mg/L" 0.2 (-1.0, 100.0)];
    /// Water: turbidity.
    Turbidity = "water_turbidity" ["[NTU]" 1.0 (-10.0, 100_000.0)];
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_has_a_deadband() {
        for metric in Metric::ALL {
            for unit in metric.units() {
                assert!(metric.deadband(unit).is_some_and(|band| band > 0.0), "{metric} {unit}");
            }
        }
        assert_eq!(Metric::AirTemperature.deadband("hPa"), None);
    }

    #[test]
    fn every_unit_has_a_plausible_range_that_is_wider_than_its_deadband() {
        for metric in Metric::ALL {
            for unit in metric.units() {
                let (low, high) = metric.plausible(unit).expect("a range");
                let deadband = metric.deadband(unit).expect("a deadband");
                assert!(high - low > 10.0 * deadband, "{metric} {unit}");
            }
        }
        assert_eq!(Metric::AirTemperature.plausible("hPa"), None);
    }

    #[test]
    fn a_plausible_range_is_equal_in_all_units_of_a_metric() {
        let of = |metric: Metric, unit| metric.plausible(unit).expect("a range");
        for (metric, one, other, factor, offset) in [
            (Metric::AirTemperature, "Cel", "K", 1.0, 273.15),
            (Metric::WaterTemperature, "Cel", "K", 1.0, 273.15),
            (Metric::AirPressure, "hPa", "Pa", 100.0, 0.0),
            (Metric::PrecipitationAmount, "mm", "kg/m2", 1.0, 0.0),
            (Metric::GammaDoseRate, "uSv/h", "nSv/h", 1000.0, 0.0),
            (Metric::WaterConductivity, "S/m", "uS/cm", 10_000.0, 0.0),
        ] {
            let ((low, high), expected) = (of(metric, one), of(metric, other));
            assert!((low * factor + offset - expected.0).abs() < 1e-9, "{metric}");
            assert!((high * factor + offset - expected.1).abs() < 1e-9, "{metric}");
        }
    }

    #[test]
    fn values_that_mean_no_data_are_not_plausible() {
        for metric in Metric::ALL {
            for unit in metric.units() {
                let (low, _) = metric.plausible(unit).expect("a range");
                let has_great_negative_values = *metric == Metric::WaterDischarge;
                assert!(low > -999.0 || has_great_negative_values, "{metric} {unit}");
            }
        }
    }

    #[test]
    fn a_deadband_is_equal_in_all_units_of_a_metric() {
        let of = |metric: Metric, unit| metric.deadband(unit).expect("a deadband");
        for (metric, small, large, factor) in [
            (Metric::AirPressure, "hPa", "Pa", 100.0),
            (Metric::GammaDoseRate, "uSv/h", "nSv/h", 1000.0),
            (Metric::WaterConductivity, "S/m", "uS/cm", 10_000.0),
        ] {
            assert!((of(metric, small) * factor - of(metric, large)).abs() < 1e-9, "{metric}");
        }
    }
}
