# SPDX-License-Identifier: Apache-2.0
"""Unicode's names of emoji, in languages that the `emoji` package has not.

They are of the npm package cldr-annotations-full 48.2.0: an emoji's name for
text to speech, in the order of the emoji in `nouns`. As data files of Unicode,
the words are under this licence:
"""

# UNICODE LICENSE V3
#
# COPYRIGHT AND PERMISSION NOTICE
#
# Copyright © 2004-2026 Unicode, Inc.
#
# NOTICE TO USER: Carefully read the following legal agreement. BY
# DOWNLOADING, INSTALLING, COPYING OR OTHERWISE USING DATA FILES, AND/OR
# SOFTWARE, YOU UNEQUIVOCALLY ACCEPT, AND AGREE TO BE BOUND BY, ALL OF THE
# TERMS AND CONDITIONS OF THIS AGREEMENT. IF YOU DO NOT AGREE, DO NOT
# DOWNLOAD, INSTALL, COPY, DISTRIBUTE OR USE THE DATA FILES OR SOFTWARE.
#
# Permission is hereby granted, free of charge, to any person obtaining a
# copy of data files and any associated documentation (the "Data Files") or
# software and any associated documentation (the "Software") to deal in the
# Data Files or Software without restriction, including without limitation
# the rights to use, copy, modify, merge, publish, distribute, and/or sell
# copies of the Data Files or Software, and to permit persons to whom the
# Data Files or Software are furnished to do so, provided that either (a)
# this copyright and permission notice appear with all copies of the Data
# Files or Software, or (b) this copyright and permission notice appear in
# associated Documentation.
#
# THE DATA FILES AND SOFTWARE ARE PROVIDED "AS IS", WITHOUT WARRANTY OF ANY
# KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
# MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT OF
# THIRD PARTY RIGHTS.
#
# IN NO EVENT SHALL THE COPYRIGHT HOLDER OR HOLDERS INCLUDED IN THIS NOTICE
# BE LIABLE FOR ANY CLAIM, OR ANY SPECIAL INDIRECT OR CONSEQUENTIAL DAMAGES,
# OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS,
# WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION,
# ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THE DATA
# FILES OR SOFTWARE.
#
# Except as contained in this notice, the name of a copyright holder shall
# not be used in advertising or otherwise to promote the sale, use or other
# dealings in these Data Files or Software without prior written
# authorization of the copyright holder.

NAMES = {
  "bg": """
    електрическа крушка, свещ, фенерче, телевизор, радио, прозорец, врата,
    багаж, автомобил, термометър, огън, ръчно сгъваемо ветрило, Лице на робот,
    метла, клипборд, календар, електрически щепсел, будилник, душ, фонтан,
    изгрев, полумесец, старица, бебе, трактор; легло, вана, тоалетна чиния,
    канапе и лампа, къща с градина, офисна сграда, училище, хотел, фабрика,
    палатка; къща, замък, класическа сграда, стадион; червена ябълка, хляб, чаша
    мляко, резен сирене, яйце, банан, домат, морков, гърне с мед, лук; китара,
    клавиатура на музикален инструмент, тромпет, цигулка, барабан, саксофон""",
  "ca": """
    bombeta, espelma, llanterna, televisió, ràdio, finestra, porta, maleta,
    automòbil, termòmetre, foc, ventall, robot, escombra, portanotes, calendari,
    endoll, despertador, dutxa, font, alba, lluna creixent, dona gran, nadó,
    tractor; llit, banyera, lavabo, sofà i làmpada, casa amb jardí, edifici
    d’oficines, escola, hotel, fàbrica, tenda; casa, castell, edifici clàssic,
    estadi; poma vermella, pa, got de llet, tall de formatge, ou, plàtan,
    tomàquet, pastanaga, pot de mel, ceba; guitarra, teclat musical, trompeta,
    violí, tambor, saxofon""",
  "cy": """
    bwlb golau, cannwyll, tortsh, teledu, radio, ffenestr, drws, bagiau, modur,
    thermomedr, tân, ffan llaw plyg, wyneb robot, ysgubell, clipfwrdd, calendr,
    plwg trydanol, cloc larwm, cawod, ffynnon, codiad haul, lleuad gilgant, hen
    fenyw, babi, tractor; gwely, twba bath, toiled, soffa a lamp, tŷ gyda gardd,
    adeilad o swyddfa, ysgol, gwesty, ffatri, pabell; tŷ, castell, adeilad
    clasurol, stadiwm; afal coch, bara, gwydraid o laeth, darn o gaws, wy,
    banana, tomato, moron, pot mêl, winwns; gitâr, allweddell, trwmped, ffidl,
    drwm, sacsoffon""",
  "eu": """
    bonbilla, kandela, linterna, telebista, irratia, leihoa, atea, ekipaje,
    autoa, termometro, sua, eskuko haizemaile tolesgarria, robot-aurpegia,
    erratz, ohar-bloka, egutegi, entxufea, alarma, dutxa, iturria, egunsentia,
    ilargi-adarra, amona, haurtxoa, traktorea; ohea, bainuontzia, bainugela,
    sofa eta lanpara, etxea eta lorategia, bulego-eraikina, eskola, hotela,
    fabrika, denda; etxebizitza, gaztelua, eraikin historikoa, estadioa; sagar
    gorria, ogi, edalontzi bat esne, gazta zatia, arrautza, banana, tomatea,
    azenarioa, ezti-potoa, tipula; gitarra, musika-teklatua, tronpeta, biolina,
    danborra, saxofoia""",
  "ga": """
    bolgán solais, coinneal, tóirse, teilifís, raidió, fuinneog, doras, málaí,
    gluaisteán, teirmiméadar, tine, fean láimhe infhillte, róbat, scruab,
    gearrthaisce, féilire, pluga leictreach, clog aláraim, cithfholcadán,
    scairdeán, éirí na gréine, corrán gealaí, seanbhean, babaí, tarracóir;
    leaba, folcadán, leithreas, tolg agus lampa, teach le gairdín, foirgneamh
    oifigí, scoil, óstán, monarcha, puball; teach, caisleán Eorpach, foirgneamh
    clasaiceach, staidiam; úll dearg, arán, gloine bainne, ding cháise, ubh,
    banana, tráta, meacan dearg, pota meala, oiniún; giotár, pianó, trumpa,
    veidhlín, druma, sacsafón""",
  "gl": """
    lámpada, candea, lanterna, televisión, radio, fiestra, porta, maleta, coche,
    termómetro, lume, abano, robot, vasoira, portapapeis, calendario, enchufe,
    espertador, ducha, fonte, amencer, lúa crecente, vella, bebé, tractor; cama,
    bañeira, váter, sofá e lámpada, casa con xardín, edificio, escola, hotel,
    fábrica, tenda de campaña; casa, castelo, monumento, estadio; mazá vermella,
    pan de molde, vaso de leite, queixo, ovo, plátano, tomate, cenoria, tarro de
    mel, cebola; guitarra, teclado musical, trompeta, violín, tambor, saxofón
   """,
  "hr": """
    žarulja, svijeća, ručna svjetiljka, televizor, radio, prozor, vrata, putna
    torba, automobil, termometar, vatra, sklopiva lepeza, robot, metla, držač
    spisa, kalendar, strujni utikač, budilica, tuš, fontana, izlazak sunca,
    polumjesec, starica, beba, traktor; krevet, kada, WC školjka, kauč i
    svjetiljka, kuća s vrtom, poslovna zgrada, škola, hotel, tvornica, šator;
    kuća, dvorac, antička građevina, stadion; crvena jabuka, kruh, čaša mlijeka,
    komad sira, jaje, banana, rajčica, mrkva, tegla meda, luk; gitara,
    klavijatura, truba, violina, bubanj, saksofon""",
  "hu": """
    villanykörte, gyertya, zseblámpa, televízió, rádió, ablak, ajtó, bőrönd,
    autó, hőmérő, tűz, összecsukható kézi legyező, robot, seprű, írótábla,
    naptár, elektromos dugó, ébresztőóra, zuhanyzó, szökőkút, napfelkelte,
    növekvő hold, idős nő, baba, traktor; ágy, fürdőkád, vécé, kanapé és lámpa,
    ház kerttel, irodaépület, iskola, hotel, gyár, sátor; lakóház, vár,
    klasszikus épület, stadion; piros alma, kenyér, egy pohár tej, sajtdarab,
    tojás, banán, paradicsom, sárgarépa, mézes csupor, hagyma; gitár, zenei
    billentyűzet, trombita, hegedű, dob, szaxofon""",
  "hy": """
    էլեկտրական լամպ, մոմ, գրպանի լապտեր, հեռուստացույց, ռադիո, պատուհան, դուռ,
    ուղեբեռ, ավտոմեքենա, ջերմաչափ, կրակ, ձեռքի հովհար, ռոբոտ, ավել, սեղմատախտակ,
    օրացույց, էլեկտրական խրոց, զարթուցիչ, ցնցուղ, շատրվան, արևածագ, մահիկ, տարեց
    կին, մանուկ, տրակտոր; մահճակալ, լոգարան, զուգարանակոնք, բազմոց և լամպ,
    այգիով տուն, գրասենյակային շենք, դպրոց, հյուրանոց, գործարան, վրան; տուն,
    դղյակ, հունահռոմեական շինություն, մարզադաշտ; կարմիր խնձոր, հաց, կաթով բաժակ,
    պանրի կտոր, ձու, բանան, լոլիկ, գազար, մեղրի կճուճ, սոխ; կիթառ, երաժշտական
    ստեղնաշար, շեփոր, ջութակ, թմբուկ, սաքսոֆոն""",
  "lt": """
    lemputė, žvakė, žibintuvėlis, televizorius, radijas, langas, durys, bagažas,
    automobilis, termometras, ugnis, sulankstoma vėduoklė, roboto veidas,
    šluota, segtuvas, kalendorius, elektros kištukas, žadintuvas, dušas,
    fontanas, saulėtekis, pusmėnulis, sena moteris, kūdikis, traktorius; lova,
    vonia, tualetas, sofa ir lempa, namas su sodu, biurų pastatas, mokykla,
    viešbutis, gamykla, palapinė; namas, pilis, klasikinis pastatas, stadionas;
    raudonas obuolys, duona, pieno stiklinė, sūrio gabaliukas, kiaušinis,
    bananas, pomidoras, morka, medaus puodynė, svogūnas; gitara, muzikos
    klaviatūra, trimitas, smuikas, būgnas, saksofonas""",
  "lv": """
    spuldze, svece, kabatas lukturītis, televizors, radio, logs, durvis, bagāža,
    automašīna, termometrs, uguns, salokāms rokas vēdeklis, robots, slota,
    dokumentu paliktnis, kalendārs, kontaktdakša, modinātājpulkstenis, duša,
    strūklaka, saullēkts, mēness sirpis, veca sieviete, zīdainis, traktors;
    gulta, vanna, tualetes pods, dīvāns un lampa, māja ar dārzu, biroju ēka,
    skola, viesnīca, rūpnīca, telts; ēka, pils, klasicisma stila ēka, stadions;
    sarkans ābols, maize, piena glāze, siera šķēle, ola, banāns, tomāts,
    burkāns, medus pods, sīpols; ģitāra, klavieru taustiņi, trompete, vijole,
    bungas, saksofons""",
  "ml": """
    ബൾബ്, മെഴുകുതിരി, ടോർച്ച്, ടെലിവിഷൻ, റേഡിയോ, ജനൽ, വാതിൽ, ലഗേജ്, ഓട്ടോമൊബൈൽ,
    തെർമോമീറ്റർ, തീ, വിശറി, റോബോട്ടിന്റെ മുഖം, ചൂൽ, ക്ലിപ്ബോർഡ്, കലണ്ടർ,
    ഇലക്‌ട്രിക് പ്ലഗ്, അലാം ക്ലോക്ക്, ഷവർ, ജലധാര, സൂര്യോദയം, ചന്ദ്രക്കല, വൃദ്ധ,
    കുഞ്ഞ്, ട്രാക്‌റ്റർ; ബെഡ്, ബാത്ത് ടബ്, ടോയ്‌ലറ്റ്, കിടക്കയും വിളക്കും,
    പൂന്തോട്ടമുള്ള വീട്, ഓഫീസ് കെട്ടിടം, സ്‌കൂൾ, ഹോട്ടൽ, ഫാക്‌ടറി, കൂടാരം; വീട്,
    കൊട്ടാരം, പ്രാചീനമായ കെട്ടിടം, സ്റ്റേഡിയം; ചുവന്ന ആപ്പിൾ, ബ്രെഡ്, പാൽ
    ഗ്ലാസ്സ്, പാൽക്കട്ടി, മുട്ട, വാഴപ്പഴം, തക്കാളി, ക്യാരറ്റ്, തേൻപാത്രം, ഉള്ളി;
    ഗിറ്റാർ, മ്യൂസിക്കൽ കീബോർഡ്, ട്രംപറ്റ്, വയലിൻ, ചെണ്ട, സാക്സഫോൺ""",
  "ne": """
    बत्तीको चिम, मैनबत्ती, फ्ल्याश लाइट, टेलिभिजन, रेडियो, झ्याल, ढोका, लगेज,
    अटोमोबाइल, थर्मोमिटर, आगो, हाते पङ्खा, रोबोट अनुहार, कुचो, क्लिपबोर्ड,
    पात्रो, बिधुतीय प्लग, अर्लाम घडी, नुहाउने, झरणा, सूर्योदय, क्रेसेन्ट
    चन्द्रमा, बूढी आइमाई, शिशु, ट्रयाक्टर; खाट, बाथटब, चर्पी, कउच र बत्ती,
    बगैँचासहितको घर, कार्यालय भवन, स्कुल, होटेल, फ्याक्ट्री, टेन्ट; घर निर्माण,
    क्यास्टल, शास्त्रीय भवन, रङ्गशाला; रातो स्याउ, रोटी, दूधको गिलास, पनिर
    पिस्ने, अण्डा, केरा, गोलभेंडा, गाजर, महको भाँडो, प्याज; गितार, सांगीतिक
    किबोर्ड, ट्रम्पेट, भायोलिन, ड्रम, स्याक्सोफोन""",
  "ro": """
    bec, lumânare, lanternă, televizor, radio, fereastră, ușă, bagaj, automobil,
    termometru, foc, eventai pliabil, robot, mătură, planșetă, calendar, fișă
    electrică, ceas deșteptător, duș, fântână arteziană, răsărit, semilună,
    bătrână, bebeluș, tractor; pat, cadă, toaletă, canapea și lampă, casă cu
    grădină, clădire de birouri, școală, hotel, fabrică, cort; casă, castel,
    clădire clasică, stadion; măr roșu, pâine, pahar cu lapte, bucată de brânză,
    ou, banană, roșie, morcov, borcan cu miere, ceapă; chitară, claviatură
    muzicală, trompetă, vioară, tobă, saxofon""",
  "sk": """
    žiarovka, sviečka, baterka, televízor, rádio, okno, dvere, batožina, auto,
    teplomer, oheň, skladací vejár, robot, metla, písacia podložka, kalendár,
    zástrčka, budík, sprcha, fontána, východ slnka, polmesiac, staršia žena,
    bábätko, traktor; posteľ, vaňa, záchod, gauč a lampa, dom so záhradou,
    kancelárska budova, škola, hotel, továreň, stan; dom, zámok, historická
    budova, štadión; červené jablko, chlieb, pohár mlieka, kus syra, vajce,
    banán, paradajka, mrkva, pohár medu, cibuľa; gitara, klávesy, trúbka, husle,
    bubon, saxofón""",
  "sl": """
    žarnica, sveča, svetilka, televizija, radio, okno, vrata, prtljaga,
    avtomobil, termometer, ogenj, pahljača, robot, metla, podložna mapa,
    koledar, električni vtikač, budilka, tuš, fontana, sončni vzhod, lunin srp,
    starka, dojenček, traktor; postelja, kad, straniščna školjka, kavč in
    svetilka, hiša z vrtom, poslovna stavba, šola, hotel, tovarna, šotor; hiša,
    grad, klasična zgradba, stadion; rdeče jabolko, kruh, kozarec mleka, kos
    sira, jajce, banana, paradižnik, korenje, vrč medu, čebula; kitara,
    klaviatura, trobenta, violina, boben, saksofon""",
  "sr": """
    сијалица, свећа, батеријска лампа, телевизија, радио, прозор, врата, пртљаг,
    аутомобил, термометар, ватра, лепеза, роботско лице, метла, клипборд,
    календар, струјни утикач, будилник, туш, фонтана, излазак сунца, месечев
    срп, старица, беба, трактор; кревет, када, ве-це шоља, кауч и лампа, кућа са
    баштом, пословна зграда, школа, хотел, фабрика, шатор; кућа, дворац, античка
    грађевина, стадион; црвена јабука, хлеб, чаша млека, кришка сира, јаје,
    банана, парадајз, шаргарепа, ћуп са медом, црни лук; гитара, клавијатура,
    труба, виолина, добош, саксофон""",
  "th": """
    หลอดไฟ, เทียน, ไฟฉาย, ทีวี, วิทยุ, หน้าต่าง, ประตู, กระเป๋าเดินทาง, รถ,
    เครื่องวัดอุณหภูมิ, ไฟ, พัดแบบพับได้, หุ่นยนต์, ไม้กวาด, คลิปบอร์ด, ปฏิทิน,
    ปลั๊กไฟ, นาฬิกาปลุก, ฝักบัว, น้ำพุ, ดวงอาทิตย์ขึ้น, พระจันทร์เสี้ยว,
    หญิงแก่, ทารก, แทร็กเตอร์; เตียง, อ่างอาบน้ำ, โถส้วม, โซฟากับโคมไฟ,
    บ้านพร้อมสวน, ตึกสำนักงาน, โรงเรียน, โรงแรม, โรงงาน, เต็นท์; บ้านเดี่ยว,
    ปราสาทยุโรป, อาคารสไตล์คลาสสิก, สนามกีฬา; แอปเปิ้ลแดง, ขนมปัง, แก้วนม,
    เนยแข็ง, ไข่, กล้วย, มะเขือเทศ, แครอท, โถน้ำผึ้ง, หอมหัวใหญ่; กีต้าร์,
    เปียโน, ทรัมเป็ต, ไวโอลิน, กลอง, แซ็กโซโฟน""",
  "vi": """
    bóng đèn, nến, đèn pin, tivi, radio, cửa sổ, cửa, hành lý, ô tô, nhiệt kế,
    lửa, quạt giấy, mặt rô-bốt, cây chổi, bảng ghi nhớ, lịch, phích cắm điện,
    đồng hồ báo thức, vòi hoa sen, đài phun nước, bình minh, trăng lưỡi liềm, cụ
    bà, trẻ con, máy kéo; giường, bồn tắm, bồn cầu, ghế dài và đèn, nhà có vườn,
    tòa nhà văn phòng, trường học, khách sạn, nhà máy, lều; ngôi nhà, lâu đài,
    tòa nhà cổ điển, sân vận động; táo đỏ, bánh mì, cốc sữa, miếng pho mát,
    trứng, chuối, cà chua, cà rốt, hũ mật ong, hành; đàn ghi-ta, phím đàn, kèn
    trumpet, đàn violin, trống, kèn saxophone""",
}
"""Code -> devices; areas; floors; foods; instruments."""
