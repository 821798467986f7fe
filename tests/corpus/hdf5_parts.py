"""HDF5 files as h5py writes them, of which a part lies in another file: outside of the folder, beside them, nowhere."""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from pathlib import Path

from . import Case
from .weights import Build

#: values in a raw file, links and virtual datasets, in files of old and of new libraries; honest: parts of the same file, links in
#: it, packed values, text that looks like paths
_RAW_AWAY = (
    b"c-"
    b"rgqaB<`1lHy_j0S*oZ76t(ZWbhvfc5tHdVe$!3nh{EOK<O1sFmXn(oCH){5NbZUx{x4OSCH!eXaHu<16Byl!7vI&BJgl^3;@v)P(Cb`o?t>%my()SoQjklJt"
    b"(vnSNio}hVV03iA%o)9HZ%XH2q?x-wsw(b=j#!d8s+nOTWQ>{w|;t3`=(k%&6rxdO98jxXJ-GNSHCg_>dBTk&zK4U&Cl-"
    b"pgc%MP(dD8r-DPCL7am@ydEmg3RDS_XJTRk8^F$>0p>G8%Nz?F<%I&=9*F(SjIfeM0ZnBDUDC4zTKyk^=3xEQl4SjY#Ny)e6s+k{gMBn@kplqEL06p"
)
_RAW_HERE = (
    b"c-"
    b"rgqaB<`1lHy|K;9!7(|4>lH1mPP%#cwQP4D<JJ31VWXU=l)B2m@S942%p6Yyu2GiZvxQuQ+ux%uE*sssNcg3bTlDf*{BVY}u(rd8s*Oj8M(aRB?j;ZjJw7Co"
    b"nQFGKw%TFflSR!om(lGm9`V3M$Amuz-"
    b"0A4B{LN;`KllE6{b!T<jV^oeUrsGBP+Zq3VPI1(=CIUotbod<PR{Xki!>!20k+R}WXm01#UODh3PfBqmg~1&Ku^dPRxlFg^ftQA||"
)
_LINK_UP = (
    b"c-"
    b"rgqaB<`1lHy_j0S*oZ76t(ZWbhvf8kkY}F!=;1%?PDCp!5nRm^ceqP68?}05xBM8C8EskgF@Q`RMkHf{_h8Tpa^IbOe;o0i{ncp{j$W!vHGT%LGrk*i$AK&?"
    b"SsW>e(1HAnxFBU`<KQD^8VVV9?Xk2crCvjMO6i-29Z(9K8%v27RzB0|3@^LxB"
)
_LINK_HERE = (
    b"c-rgqaB<`1lHy|K;9!7(|4^_Q$~S=0Q$xeL{XJZQm>4RUgpd`&02dPjBLf4QGy?-8hXZR$YF=@w00TooVo`}+hAD$SSb%}Sl7W2iXZ@#M0Ee$Axc"
)
_MANY_AWAY = (
    b"c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf7$ng6P>=wn8KHCslwQFE6K4d=LA5goLd{247ZT*^3R3+a4Z!R%V1dva45MHq0uNWm01zDk<-"
    b"=0x2_{r^DXDqIsYvP3gF<^58Q36ZF~ay75Sj@h08N$*Tu>UF&kRiYAeDj&@=!Si25}As@p`B{D=<Za<e8Wu268}s#=;Cs>JWQ`pj;5oa2|6u14F@p#6z&3zY"
    b"8cw!}6g5^Jv-}1*2f70(WPBA4a4C6;^JlGolq}dJHKH%t#7AfC-5&fyRdcP9WAV%Fi#+FHTJ^N-"
    b"fdLFeSkxMx^EiWhOBp$x~($GrVYrm}FIBehsc^2j6I#8U>?Z6pVsVFbYP&C>RB!U=)mkQ84%b0G#+nf&"
)
_MANY_UP = (
    b"c-rgqaB<`1lHy|K;9!7(|4_gn0pS}!#T`34+5J6Sf|wX8n1qlO!T=W&10w?in*allVogcSD^A@EGt-"
    b"5EDnRCr!Yr^86b<JwXCq?<Mn)9|1|}v(Mi!`AE+~!8XBJ^#6jYFhiYqXPb1;b416iy<*E4f-"
    b"@Bwu&GeARw5kxFu7!n}z?BZ62Q7{Td!6+C7qktIT?(FXauH*!eDm)-"
    b"~2c_Y)DN70iGm<<AFo7ylkQfsaR4*e~9z+5wTRlDf;?(4#)Dpc6QwBo18PRkz!juxy$V9G2W;Bg!1wCpJYCrIerj1cB3P!;w7zLwX6pVsVFbYP&C>RC92LJ#"
    b"}A~$3"
)
_HONEST = (
    b"c-"
    b"rgqaB<`1lHy_j0S*oZ76t(ZWbhvfb{M1bVe$!3nh{EOK<O1sFmYzEoCH){0BZgLIaK{2L9VVK)&J1|%$^6V5L$s@6pTdR;p!Lwq9dSu4Jdtr2~}NsQ304P&Q"
    b"B`=(fU9E{c;9|vdq+S<aBC4q`i#59DyzU?vRG?Ul5soEjS=F$7ocJreCD=)WM3Xt{h62<)D_U4rJOJ?C0+SDuZF^PJtQKTn{KegB6y(QOkKIH21;)tQ_7TJ2"
    b"K*rk%0{oW{faCqy%DQf(VE})#0L<fguP|DX1V1EKwjKD9*tkUJsRL1;!9ao{1S^AUA^rn9m4}04A_JBSUdUX<AxND%1>+J0RjIscAWhB?xg2XpAv4F*k5Rgt"
    b"(v>s>Fh#@PMQ%CU|;TAcJ2$Ed6P)kCp|<090>)>KOETqmh8V9l{X022Gp`jc+M}s*VeXd0V0CYSGl8t2Y$IZXb+h8I96WFbYP&C>RB!U=)l3nt+P9<OB(|1&"
    b"s$6CLU~L=V9Uw%ehhb;7F@9f1JjOj299!B5qjh5SbEk#l&RmmeLa4h%G5MyF#<C<=!ZHbY*6-xL)kevd7oj{p0uj{qgm=JhL*tzWn}%1rs)OtY}&^X;as#S-"
    b"aYnb*`Mbvvujzt-ZR<dzmFHlo-"
    b"{88jXRylB7<zBCrGG91b2(R9LuRVe+9KetU@siwYJOl@yyACMTsNp&+B8s$Xh8vy5_&t+D*PE$8;e?DPAW+xuj87r#HaSp9t5o~qA%oikgf_Rejd+#T%`;}q"
    b"l-<rd}_=N;`H?tlNlg%dZ<-8*>k<jtd3&)yZ}w3x^-"
    b"r;~+&`GS2l*zST04!kcOzI^)j@$2XE0usW~;`1lWm@;QlR6s;XOi)x<T;R<sSMJ=obm`WuYu7GczJ2@p_51dThqh#1UVeUtVezvyk=$ZBF*`CYK04|>ZB5kH"
    b"s;{$5v#+m<-ky5;+S=ROa_{d;KEAK^_jh@Vf)5WCI-e_HU`XDa>;bkr;DUp$gouogl$e~Lr0Cpf^Cr%mI(PEy>G7el!O`LOFI>2B<KDfC7jNFYdiAbt;iDy<"
    b"lhyra8kN3!bF=u_nYq^a_x}9!o~{?Yt>$N!sCM|e`2C58kM+(r%e}X!`1!in-"
    b"R19ZZZ3cS@UVNIjBVAM8y_EoEN8xwcFqXY@>hnW05)(h5y592%@m_x6pVsVFam%ebmR?v{FVngqXrtU6k(8H$V<#kEe7%>85zMk1Q=jLn2-"
    b"@UMn(t^HqHy9k!u!^7&{W55yc)Rus!)ueUgj}B-z7=WG)L-9L8q`%d?`5yGr0S4>rz<%fIk(Rwjrre4LbV9du+%0WG9E235S%dmNern$B35VX*=kz!ieUD-"
    b"avbW6ow^C>YRufIjcc1D!DejgN}}aZ+M(c4}S<?tB2%&xMr!M(65A!6+C7gAuqp`}=^)ECB|T@(VV-rl+S5L=`CYISA;dmL%&JBo-H!r@-"
    b"r2<odI+5>Xc;n_Izv+RMac9vf8L2udfC3{d^y%Yfz(JqE~%4rU}Vm<M2d2{b+k2tzTy)UgjpWjk!%sw6e9IKL<@C%+suoEPwornONp3P!;w7zLwX6pVsVFbY"
    b"P&C>R9;2LPv4vxN"
)
_HONEST_NEW = (
    b"c-"
    b"rgqaB<`1lHy|K;9!7(|4<+%1>qY&#m}~!zwGbf62!z%!6byN5C*uI7#JBC*!UQL6mxn}!DgsN0RaYvMXV5ZBvg!zAEb(<EHkydjRhhkD#XBoX($6H0|J<Mzb"
    b"+ug2|OUf8OzNW@tF*A)&VAnid`^g@q%<RmE}}1Lq&KQP{EwP*1=#W04-"
    b"otVPIflVq_G7%Hg7!MHm<b733Kp9#vov=U@=82eMd!u4U%t7Gq#!Vgfmw5v+m{&f*XPt6^s3;$mUua)P>*p^agXfcVCOX>N`lE)0w!T+m2lh=aOPR`ck2H%A"
    b"vI21dBMp-HR}$%ICzSPhccUo2vk&{R;1BxV?zsOazP;ms2c3}FT~U}yuwJ1;RewU|MYk&!_Fl=8sA39%a(PmC~^z-"
    b"VqD{>F(AV@KkH^zj6PjAnuuoewmYfhc1ck&I!1io^JzbTwzL+6;Ia0-"
    b"B7?3{aZE<_&O~VFINLX2x%l4A2w>1sfQK9N2R8kSI7T6b<JwXCq^3<u49kfyBZL3x7})Gb|YzVPja)*aS-9Y`_G-$ic``oS#<0#-I-"
    b"@TJ_6$EJ10B0~iKCUneCdXQ$?+U{Cizk_#yTf^yf{r{7E&M!_hkh)Yh8P+QP=aAD%XMs^-1?y#I2g%6IjO7q8QtjKsFF(cxJ#SW1vAy-UHwr(jc(T&)Wa<eN"
    b"m`&#ael1Eo&7K`h}?kszJt=&I<-`^i!pUX2V^Xtp+Z&)y4L&u7yMUyslt(vu~ZCU5anLAsTPTkt8+q{=q!a|8rU8vC*m^_m@-"
    b"HN~tkaIYAKv7}gf`!S4did=nA}lIcTvSqQYM7jql7xbcimHC8`OGrPJ+{X3^R}GZ8?(>vV{Y%0*<Jkp;9~XjaeJyh_jS%}o!UFMd2)BOPmEKLSCm_rUz~Ted"
    b"$|Ao0~b!*ICt;h#gjLWUOjtPkkeu!$DB?U2IdR))nK~|E;#VMc=+<^+sCh;%L_;dON-"
    b"B+Fk{M`Nl^h2Au&NwVR3;suUxrv=hCHHx2|2geEIh6>(}qwCm!08d3pKy8HUBr)<klP>BQ{FxcKO(_p~)pTdTg#GR?leE_!?F>1%6mZ_B;EFZuYs+TY*hEeb"
    b"w7Sm=DNgn=P>bFv56?tlvpx)LHXLQ-OKf|8<hr_Gx<bL!m5v!}<0#s)`+-@kC-"
    b"#*KUTE?&HO^Xk>RwuO(DcurRLpJ`P3>dnpKXJ_VG=imGD(|fvJ^tPIxU836I>*Dt(9zNDP+bs9qp5o{0Vt1Fnzqz^m{lmlVeKNLHZ*F{i46>a0O4>PhXMZ1X"
    b"@gRVxui#}P5a{XY15pJ^H3<UxsU^w!1&PJQ<tgyG47tv#tVGm#$mUi+X;uQ}u|dU+pmZY10M#E(Fn7Ql!U8Tj!R}^6$^}eNzW|$IP<Jze>lO$d%qZ7@(trUM"
    b"ryx+0npd1(l$MiUj+(1h@Qs!%qhJ(_f>AIEM!_f;1*2dTjDk@x3I-m4`q!}GKsE-{VQ^3%9RTzXz}5"
)
ADVISORY = "CVE-2026-1669"


def _bytes(made: bytes) -> bytes:
    return zlib.decompress(base64.b85decode(made))


def _file(made: bytes, *beside: str, before: bytes = b"") -> Build:
    """The file, and others that it names."""

    def build(folder: Path) -> None:
        (folder / "model.weights.h5").write_bytes(before + _bytes(made))
        for name in beside:
            path = folder / name
            path.write_bytes(_bytes(_HONEST) if name.endswith(".h5") else bytes(range(32)))

    return build


def _archive(made: bytes) -> Build:
    """The file in an archive of Keras."""

    def build(folder: Path) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
            archive.writestr("config.json", '{"module": "keras", "class_name": "Sequential", "config": {"layers": []}}')
            archive.writestr("model.weights.h5", _bytes(made))
        (folder / "model.keras").write_bytes(out.getvalue())

    return build


_AWAY = ("hdf5-outside-file",)
_UNREAD = _bytes(_MANY_AWAY).replace(b"\x02\0\0\0\x01\0\0\0", b"\x02\0\0\0\x09\0\0\0")
CASES: list[Case] = [
    Case("h5-raw-file-away", _file(_RAW_AWAY), "malicious", _AWAY, see=ADVISORY),
    Case("h5-raw-file-away-behind-text", _file(_RAW_AWAY, before=b"# notes ".ljust(512)), "malicious", _AWAY, see=ADVISORY),
    Case("h5-link-away", _file(_LINK_UP), "malicious", _AWAY, see=ADVISORY),
    Case("h5-virtual-away", _file(_MANY_AWAY), "malicious", _AWAY, see=ADVISORY),
    Case("h5-virtual-away-new", _file(_MANY_UP), "malicious", _AWAY, see=ADVISORY),
    Case("keras-raw-file-away", _archive(_RAW_AWAY), "malicious", _AWAY, see=ADVISORY),
    Case("keras-link-away", _archive(_LINK_UP), "malicious", _AWAY, see=ADVISORY),
    Case("keras-raw-file-relative", _archive(_RAW_HERE), "suspicious", ("hdf5-other-file",)),
    Case("h5-raw-file-missing", _file(_RAW_HERE), "broken", ("hdf5-data-missing",)),
    Case("h5-link-missing", _file(_LINK_HERE), "broken", ("hdf5-data-missing",)),
    Case("h5-virtual-unreadable",
         _file(base64.b85encode(zlib.compress(_UNREAD))), "could not tell", ("hdf5-not-read", "hdf5-outside-file")),
    Case("h5-raw-file-here-honest", _file(_RAW_HERE, "part.raw"), rules=("hdf5-other-file",)),
    Case("h5-link-here-honest", _file(_LINK_HERE, "part.h5"), rules=("hdf5-other-file",)),
    Case("h5-honest", _file(_HONEST)),
    Case("h5-new-honest", _file(_HONEST_NEW)),
    Case("keras-h5-honest", _archive(_HONEST)),
]  # fmt: skip
