# SPDX-License-Identifier: Apache-2.0
"""Household words in every language, to fill sentence templates with.

Unicode's names of emoji give them, where the `emoji` package has the language
or `emoji_names`. For the others they are written out below, in the order of the
emoji.
"""

from collections.abc import Iterable
import functools
import re
from typing import NamedTuple

import emoji

from sira_jax.data import emoji_names

# A device and the Home Assistant domains in which a template may name it.
_DEVICES = (
  ("💡", ("light",)),
  ("🕯️", ("light",)),
  ("🔦", ("light",)),
  ("📺", ("media_player",)),
  ("📻", ("media_player",)),
  ("🪟", ("cover", "binary_sensor")),
  ("🚪", ("cover", "binary_sensor", "lock")),
  ("🧳", ("lock",)),
  ("🚗", ("lock",)),
  ("🌡️", ("climate", "sensor")),
  ("🔥", ("climate", "sensor")),
  ("🪭", ("fan",)),
  ("🤖", ("vacuum",)),
  ("🧹", ("vacuum",)),
  ("📋", ("todo",)),
  ("📅", ("todo",)),
  ("🔌", ("switch", "input_boolean", "fan")),
  ("⏰", ("switch", "input_boolean")),
  ("🚿", ("valve",)),
  ("⛲", ("valve",)),
  ("🌅", ("scene", "script")),
  ("🌙", ("scene", "script")),
  ("👵", ("person",)),
  ("👶", ("person",)),
  ("🚜", ("lawn_mower",)),
)
_EMOJI = {
  "devices": [symbol for symbol, _ in _DEVICES],
  "areas": ["🛏️", "🛁", "🚽", "🛋️", "🏡", "🏢", "🏫", "🏨", "🏭", "⛺"],
  "floors": ["🏠", "🏰", "🏛️", "🏟️"],
  "foods": ["🍎", "🍞", "🥛", "🧀", "🥚", "🍌", "🍅", "🥕", "🍯", "🧅"],
  "instruments": ["🎸", "🎹", "🎺", "🎻", "🥁", "🎷"],
}

_WRITTEN = {
  "cs": """
    žárovka, svíčka, baterka, televize, rádio, okno, dveře, skříňka, auto,
    teploměr, krb, ventilátor, vysavač, koště, zápisník, kalendář, zásuvka,
    budík, sprcha, fontána, východ slunce, noc, babička, miminko, traktor;
    ložnice, koupelna, toaleta, obývací pokoj, zahrada, kancelář, kuchyně,
    chodba, garáž, balkon; přízemí, patro, sklep, podkroví; jablko, chléb,
    mléko, sýr, vejce, banán, rajče, mrkev, med, cibule; kytara, klavír,
    trubka, housle, buben, saxofon""",
  "da": """
    pære, stearinlys, lommelygte, fjernsyn, radio, vindue, dør, arkivskab, bil,
    termometer, pejs, ventilator, støvsuger, kost, notesbog, kalender,
    stikkontakt, vækkeur, bruser, springvand, solopgang, nat, bedstemor, baby,
    traktor; soveværelse, badeværelse, toilet, stue, have, kontor, køkken,
    gang, garage, altan; stueetage, førstesal, kælder, loft; æble, brød, mælk,
    ost, æg, banan, tomat, gulerod, honning, løg; guitar, klaver, trompet,
    violin, tromme, saxofon""",
  "el": """
    λάμπα, κερί, φακός, τηλεόραση, ραδιόφωνο, παράθυρο, πόρτα, αρχειοθήκη,
    αυτοκίνητο, θερμόμετρο, τζάκι, ανεμιστήρας, ρομπότ, σκούπα, σημειωματάριο,
    ημερολόγιο, πρίζα, ξυπνητήρι, ντους, σιντριβάνι, ανατολή, νύχτα, γιαγιά,
    μωρό, τρακτέρ; υπνοδωμάτιο, μπάνιο, τουαλέτα, σαλόνι, κήπος, γραφείο,
    κουζίνα, διάδρομος, γκαράζ, μπαλκόνι; ισόγειο, όροφος, υπόγειο, σοφίτα;
    μήλο, ψωμί, γάλα, τυρί, αυγό, μπανάνα, ντομάτα, καρότο, μέλι, κρεμμύδι;
    κιθάρα, πιάνο, τρομπέτα, βιολί, τύμπανο, σαξόφωνο""",
  "fi": """
    lamppu, kynttilä, taskulamppu, televisio, radio, ikkuna, ovi,
    arkistokaappi, auto, lämpömittari, takka, tuuletin, imuri, luuta, muistio,
    kalenteri, pistorasia, herätyskello, suihku, suihkulähde, auringonnousu,
    yö, isoäiti, vauva, traktori; makuuhuone, kylpyhuone, vessa, olohuone,
    puutarha, työhuone, keittiö, eteinen, autotalli, parveke; alakerta,
    yläkerta, kellari, ullakko; omena, leipä, maito, juusto, muna, banaani,
    tomaatti, porkkana, hunaja, sipuli; kitara, piano, trumpetti, viulu,
    rumpu, saksofoni""",
  "nb": """
    lyspære, stearinlys, lommelykt, fjernsyn, radio, vindu, dør, arkivskap,
    bil, termometer, peis, vifte, støvsuger, kost, notatblokk, kalender,
    stikkontakt, vekkerklokke, dusj, fontene, soloppgang, natt, bestemor, baby,
    traktor; soverom, bad, toalett, stue, hage, kontor, kjøkken, gang, garasje,
    balkong; første etasje, andre etasje, kjeller, loft; eple, brød, melk, ost,
    egg, banan, tomat, gulrot, honning, løk; gitar, piano, trompet, fiolin,
    tromme, saksofon""",
  "nl": """
    lamp, kaars, zaklamp, televisie, radio, raam, deur, archiefkast, auto,
    thermometer, haard, ventilator, stofzuiger, bezem, klembord, kalender,
    stopcontact, wekker, douche, fontein, zonsopgang, nacht, oma, baby,
    tractor; slaapkamer, badkamer, toilet, woonkamer, tuin, kantoor, keuken,
    gang, garage, balkon; begane grond, bovenverdieping, kelder, zolder; appel,
    brood, melk, kaas, ei, banaan, tomaat, wortel, honing, ui; gitaar, piano,
    trompet, viool, trommel, saxofoon""",
  "pl": """
    żarówka, świeca, latarka, telewizor, radio, okno, drzwi, szafka, samochód,
    termometr, kominek, wentylator, odkurzacz, miotła, notatnik, kalendarz,
    gniazdko, budzik, prysznic, fontanna, wschód słońca, noc, babcia, niemowlę,
    traktor; sypialnia, łazienka, toaleta, salon, ogród, biuro, kuchnia,
    korytarz, garaż, balkon; parter, piętro, piwnica, poddasze; jabłko, chleb,
    mleko, ser, jajko, banan, pomidor, marchewka, miód, cebula; gitara,
    pianino, trąbka, skrzypce, bęben, saksofon""",
  "sv": """
    lampa, ljus, ficklampa, tv, radio, fönster, dörr, arkivskåp, bil,
    termometer, brasa, fläkt, dammsugare, kvast, anteckningsbok, kalender,
    eluttag, väckarklocka, dusch, fontän, soluppgång, natt, mormor, bebis,
    traktor; sovrum, badrum, toalett, vardagsrum, trädgård, kontor, kök, hall,
    garage, balkong; bottenvåning, övervåning, källare, vind; äpple, bröd,
    mjölk, ost, ägg, banan, tomat, morot, honung, lök; gitarr, piano, trumpet,
    fiol, trumma, saxofon""",
  "uk": """
    лампочка, свічка, ліхтарик, телевізор, радіо, вікно, двері, шафа,
    автомобіль, термометр, камін, вентилятор, пилосос, мітла, нотатник,
    календар, розетка, будильник, душ, фонтан, світанок, ніч, бабуся, немовля,
    трактор; спальня, ванна, туалет, вітальня, сад, кабінет, кухня, коридор,
    гараж, балкон; перший поверх, другий поверх, підвал, горище; яблуко, хліб,
    молоко, сир, яйце, банан, помідор, морква, мед, цибуля; гітара, піаніно,
    труба, скрипка, барабан, саксофон""",
}


class Nouns(NamedTuple):
  """One language's words."""

  devices: tuple[str, ...]
  areas: tuple[str, ...]
  floors: tuple[str, ...]
  foods: tuple[str, ...]
  instruments: tuple[str, ...]

  def devices_in(self, domains: Iterable[str]) -> tuple[str, ...]:
    """The devices of any of these domains; all devices if none has one."""
    wanted = set(domains)
    found = tuple(
      word
      for word, (_, known) in zip(self.devices, _DEVICES, strict=True)
      if wanted & set(known)
    )
    return found or self.devices


@functools.cache
def nouns(language: str) -> Nouns:
  """The words of a language.

  Raises:
    ValueError: if we have none in that language.
  """
  written = _WRITTEN | emoji_names.NAMES
  if language in written:
    kinds = written[language].split(";")
    return Nouns(
      *(tuple(re.split(r",\s+", " ".join(k.split()))) for k in kinds)
    )
  if language not in emoji.LANGUAGES:
    known = ", ".join(sorted({*emoji.LANGUAGES, *written}))
    raise ValueError(
      f"No household words in {language!r}. There are some in: {known}."
    )
  emoji.config.load_language(language)
  return Nouns(
    *(
      tuple(_name(symbol, language) for symbol in symbols)
      for symbols in _EMOJI.values()
    )
  )


def _name(symbol: str, language: str) -> str:
  return emoji.EMOJI_DATA[symbol][language].strip(":").replace("_", " ")
