//! What a sensor can measure, and in which units.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $name:literal [$($unit:literal),+];)*) => {
        /// An observed property: CF standard names where the CF table has one, units in UCUM.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            JsonSchema,
        )]
        pub enum Metric {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Metric {
            /// Every metric.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name on every wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The UCUM units that a sensor of this metric may report in, the usual one first.
            #[must_use]
            pub fn units(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($unit),+],)* }
            }
        }
    };
}

metrics! {
    /// Weather: air temperature.
    AirTemperature = "air_temperature" ["Cel", "K"];
    /// Weather: relative humidity.
    RelativeHumidity = "relative_humidity" ["%"];
    /// Weather: air pressure at the station.
    AirPressure = "air_pressure" ["hPa", "Pa"];
    /// Weather: wind speed.
    WindSpeed = "wind_speed" ["m/s"];
    /// Weather: the direction that the wind comes from, clockwise from north.
    WindFromDirection = "wind_from_direction" ["deg"];
    /// Weather: precipitation.
    PrecipitationAmount = "precipitation_amount" ["mm", "kg/m2"];
    /// Radiation: downwelling global solar.
    DownwellingShortwave = "surface_downwelling_shortwave_flux_in_air" ["W/m2"];
    /// Radiation: upwelling (reflected) solar.
    UpwellingShortwave = "surface_upwelling_shortwave_flux_in_air" ["W/m2"];
    /// Radiation: direct normal solar.
    DirectShortwave = "surface_direct_along_beam_shortwave_flux_in_air" ["W/m2"];
    /// Radiation: diffuse solar.
    DiffuseShortwave = "surface_diffuse_downwelling_shortwave_flux_in_air" ["W/m2"];
    /// Radiation: downwelling thermal infrared.
    DownwellingLongwave = "surface_downwelling_longwave_flux_in_air" ["W/m2"];
    /// Radiation: upwelling thermal infrared.
    UpwellingLongwave = "surface_upwelling_longwave_flux_in_air" ["W/m2"];
    /// Radiation: global UVB, erythemally weighted.
    UvbFlux = "surface_downwelling_uvb_flux_in_air" ["mW/m2"];
    /// Radiation: photosynthetically active.
    PhotosyntheticFlux = "surface_downwelling_photosynthetic_radiative_flux_in_air" ["W/m2"];
    /// Radiation: ambient gamma dose equivalent rate.
    GammaDoseRate = "ambient_gamma_dose_equivalent_rate" ["uSv/h", "nSv/h"];
    /// Air: fine particles.
    Pm2p5 = "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air" ["ug/m3"];
    /// Air: coarse particles.
    Pm10 = "mass_concentration_of_pm10_ambient_aerosol_particles_in_air" ["ug/m3"];
    /// Air: ozone.
    Ozone = "mass_concentration_of_ozone_in_air" ["ug/m3"];
    /// Air: nitrogen dioxide.
    NitrogenDioxide = "mass_concentration_of_nitrogen_dioxide_in_air" ["ug/m3"];
    /// Air: carbon dioxide.
    CarbonDioxide = "mole_fraction_of_carbon_dioxide_in_air" ["[ppm]"];
    /// Water: level above the gauge's datum.
    WaterLevel = "water_surface_height_above_reference_datum" ["m"];
    /// Water: temperature.
    WaterTemperature = "water_temperature" ["Cel", "K"];
    /// Water: discharge of a river.
    WaterDischarge = "water_volume_transport_in_river_channel" ["m3/s"];
    /// Water: acidity.
    WaterPh = "water_ph" ["[pH]"];
    /// Water: electrical conductivity.
    WaterConductivity = "water_electrical_conductivity" ["uS/cm", "S/m"];
    /// Water: dissolved oxygen.
    DissolvedOxygen = "mass_concentration_of_oxygen_in_water" ["mg/L"];
    /// Water: turbidity.
    Turbidity = "water_turbidity" ["[NTU]"];
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
